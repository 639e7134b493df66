"""AutoFLIP: exploration, guidance, masks and their schedules."""
