"""The worker side of serving: one process a scenario, forked from a zygote, spoken to in frames. No fastapi, no asyncio."""
