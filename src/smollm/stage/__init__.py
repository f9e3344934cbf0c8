"""What all stages do: begin or resume, work, publish outputs and reports, end."""
