"""The contract between a TGI router and its shards, served by our engine."""
