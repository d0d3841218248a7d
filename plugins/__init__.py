"""The built-in components: one folder per slot, one file per idea. A new file here is registered by being here."""
