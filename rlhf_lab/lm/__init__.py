"""Language models as the laboratory uses them: text to tokens, sampling, log-probabilities, scalar heads, files."""
