"""The truth about a trained adapter: arms, scores, reports."""
