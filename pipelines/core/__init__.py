"""What every stage is built on: shards and their keys, executors, params, products and their places."""
