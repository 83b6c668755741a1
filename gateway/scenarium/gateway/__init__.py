"""The gateway: one asyncio process that queues requests, batches them and supervises workers. No torch, no plugin code."""
