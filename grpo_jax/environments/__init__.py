"""What answers the policy; `base.Environment` says what each offers."""
