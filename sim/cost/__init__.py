"""What one engine step costs: work, communication and time. No queues here."""
