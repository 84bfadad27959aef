"""How telemetry leaves: one bounded pipeline for spans, metrics and log events. Must not know hops' rules or brokers."""
