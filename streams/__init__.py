"""Streaming impression event processor: served, measurable, viewable, CPM and vCPM per campaign, live and exact."""
