# Document: Redis Memory Manager
# Section: Troubleshooting / Common Issues / Connection Refused

# Error: redis.exceptions.ConnectionError: Error connecting to Redis
# Solution: Verify Redis is running
redis-cli ping  # Should return PONG
