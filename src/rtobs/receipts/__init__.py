"""Receipts: what comes back from the client's screen. For now the signed token; the endpoint and the beacon follow."""
