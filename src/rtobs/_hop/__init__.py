"""What users write: hops and stages. Must not know brokers, metrics, exporters or the environment."""
