"""Floor 6: pages that people work on in a browser. The one for preferences is all there is so far."""
