"""What a run made, for others: compared, watched, described by a card, exported and pushed."""
