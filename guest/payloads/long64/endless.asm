; Never ends: jumps to itself with interrupts off.
bits 64
section .start exec
    cli
    jmp $
