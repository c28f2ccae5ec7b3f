"""The embedded default data: a simulated adult T1 cohort at the seven sites of Table 2.1. No download.

`physics` turns relaxation times into signal, `template` labels the ICBM152 maps, `sites` lists protocols,
`cohort` draws subjects, `anatomy` gives each subject a brain and `render` images that brain at a site.
Everything made here is simulated and must be labelled so wherever it is shown.
"""
