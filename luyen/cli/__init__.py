"""Floor 7: one small file per command; torch is imported only when work begins."""
