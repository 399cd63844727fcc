"""The only code that knows Faust and aiokafka: transport, app, stages, topics, the embedded broker."""
