# Stops Linux where its C code begins: `make linux VMLINUX=FILE`.
target remote localhost:1234
# Ends here if FILE has no symbols. Linux then goes on.
print start_kernel
break start_kernel
continue
backtrace
info registers rip cr3
detach
