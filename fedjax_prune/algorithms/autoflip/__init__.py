"""AutoFLIP: exploration, schedules of masks and agreement of clients."""
