"""How the next token is chosen: penalties, masks, truncation, seeded draws, log-probabilities and grammars.

Owns everything between a row of logits and a token id. Knows nothing of scheduling, models or text beyond a
vocabulary. Called by `inference.engine`; the gateway imports `grammar` alone. Works on numpy arrays throughout, so no
module here imports torch.
"""
