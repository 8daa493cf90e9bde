module vramfit

go 1.21
