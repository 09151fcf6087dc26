# Stops Linux where its C code begins: `make linux VMLINUX=FILE`.
target remote localhost:1234
break start_kernel
continue
backtrace
info registers rip cr3
detach
