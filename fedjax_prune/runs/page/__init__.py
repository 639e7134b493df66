"""The page of one or several runs: pictures and tables of what their workdirs hold."""
