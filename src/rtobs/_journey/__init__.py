"""What travels with a message, and the facts about one hop. Must not know clients, metrics or exporters."""
