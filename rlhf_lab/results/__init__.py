"""A results folder: its tables, its health, and what is done with it afterwards."""
