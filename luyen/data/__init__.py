"""Floor 2: files of any known format -> typed records -> samples of tokens -> packed batches."""
