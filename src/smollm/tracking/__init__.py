"""MLflow: told of every run by the journal, and never waited for. No other module knows it.

The journal is written first. A `Delivery` knows how far MLflow has been told of it and sends the
rest; where MLflow does not answer, training goes on, and the rest is sent later: by the same
stage, by the next one, or by ``python -m smollm.tracking.outbox`` (`make sync`).
"""
