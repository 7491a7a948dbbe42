"""Learning: fit, describe, score and draw, as pure functions of frames; knows no warehouse."""
