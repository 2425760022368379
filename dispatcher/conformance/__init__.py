"""A kit that tests webhooks end to end: a receiver that judges and misbehaves, checks of any sender, attacks on any
receiver.

It shares no code with what signs and sends in `dispatcher.delivery` and `subscriptions`: a receiver that did would
prove nothing.
"""
