# Document: Memory Reference Implementations
# Section: Usage Patterns / Custom Memory Implementation

from arshai.core.interfaces.imemorymanager import IMemoryManager, IMemoryInput, IWorkingMemory
from typing import List
import sqlite3
import json
from datetime import datetime

class SQLiteMemoryManager(IMemoryManager):
    """Custom SQLite-based memory implementation."""

    def __init__(self, db_path: str = "memory.db"):
        self.db_path = db_path
        self._init_db()

    def _init_db(self):
        """Initialize SQLite database."""
        conn = sqlite3.connect(self.db_path)
        cursor = conn.cursor()
        cursor.execute("""
            CREATE TABLE IF NOT EXISTS memories (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                conversation_id TEXT NOT NULL,
                memory_type TEXT NOT NULL,
                working_memory TEXT NOT NULL,
                metadata TEXT,
                created_at TEXT NOT NULL,
                last_update TEXT NOT NULL,
                UNIQUE(conversation_id, memory_type)
            )
        """)
        conn.commit()
        conn.close()

    def store(self, input: IMemoryInput) -> str:
        """Store memory in SQLite."""
        conn = sqlite3.connect(self.db_path)
        cursor = conn.cursor()

        for data in input.data:
            cursor.execute("""
                INSERT OR REPLACE INTO memories 
                (conversation_id, memory_type, working_memory, metadata, created_at, last_update)
                VALUES (?, ?, ?, ?, ?, ?)
            """, (
                input.conversation_id,
                str(input.memory_type),
                data.working_memory,
                json.dumps(input.metadata or {}),
                datetime.now().isoformat(),
                datetime.now().isoformat()
            ))

        conn.commit()
        conn.close()

        return f"{input.conversation_id}:{input.memory_type}"

    def retrieve(self, input: IMemoryInput) -> List[IWorkingMemory]:
        """Retrieve memory from SQLite."""
        conn = sqlite3.connect(self.db_path)
        cursor = conn.cursor()

        cursor.execute("""
            SELECT working_memory FROM memories 
            WHERE conversation_id = ? AND memory_type = ?
        """, (input.conversation_id, str(input.memory_type)))

        result = cursor.fetchone()
        conn.close()

        if result:
            return [IWorkingMemory(working_memory=result[0])]
        return []

    def update(self, input: IMemoryInput) -> None:
        """Update memory in SQLite."""
        # For SQLite, update is the same as store due to INSERT OR REPLACE
        self.store(input)

    def delete(self, input: IMemoryInput) -> None:
        """Delete memory from SQLite."""
        conn = sqlite3.connect(self.db_path)
        cursor = conn.cursor()

        cursor.execute("""
            DELETE FROM memories 
            WHERE conversation_id = ? AND memory_type = ?
        """, (input.conversation_id, str(input.memory_type)))

        conn.commit()
        conn.close()
