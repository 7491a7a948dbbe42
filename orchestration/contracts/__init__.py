"""Contracts: pandera schemas of frames. Raw tables state theirs in defs/raw/, use cases have a file here."""
