"""What comes out: one HopRecord in, metrics, spans and log events out. Must not know brokers or exporters."""
