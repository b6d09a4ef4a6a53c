# Document: Redis Memory Manager
# Section: Troubleshooting / Common Issues / Wrong Database

# Using wrong Redis database number
# Solution: Specify correct DB in URL
REDIS_URL="redis://localhost:6379/1"  # Use DB 1
