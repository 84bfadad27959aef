"""How telemetry leaves: one bounded pipeline for spans, metrics and logs. Must not know hops' rules or brokers."""
