"""Load test: every answer is compared with the checkpoint's golden texts."""
