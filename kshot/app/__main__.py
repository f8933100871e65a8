from kshot.app.cli import main

main()
