"""Networks with their cards: in memory, on disk, and made from parameters."""
