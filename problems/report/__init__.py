"""What studies of several families report with: averages over seeds, spreads, pictures."""
