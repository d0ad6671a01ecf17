"""One module per verb: `run(config, stage)` joins the rooms below into a stage. Imported only when work begins."""
