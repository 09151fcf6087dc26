; Never ends: jumps to itself with interrupts off.
bits 16
section .start exec
    cli
    jmp $
