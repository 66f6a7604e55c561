"""temporal_api."""
