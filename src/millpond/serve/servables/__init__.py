"""Servables: deployed models with methods that are not (only) a language model, and what runs them.

`tensors`, `messages`, `errors` and `config` are the words every protocol and every back end share; they import nothing
but numpy. A protocol translates to them and calls `registry`; a back end implements `backend.Backend`.
"""
