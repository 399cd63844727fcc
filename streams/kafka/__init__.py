"""The only code that knows Faust and aiokafka; and the embedded broker."""
