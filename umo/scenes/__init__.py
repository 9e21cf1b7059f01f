"""What a scene shows and says: prompts, captions, and scenes composited from photographs."""
