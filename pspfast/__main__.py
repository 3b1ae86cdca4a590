from pspfast.cli import main

main()
