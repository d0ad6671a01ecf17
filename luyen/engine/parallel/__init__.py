"""Plans that spread one run over many processes; models and algorithms know nothing of them."""
