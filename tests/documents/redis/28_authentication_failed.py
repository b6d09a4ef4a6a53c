# Document: Redis Memory Manager
# Section: Troubleshooting / Common Issues / Authentication Failed

# Error: NOAUTH Authentication required
# Solution: Include password in URL
REDIS_URL="redis://:your_password@localhost:6379/1"
