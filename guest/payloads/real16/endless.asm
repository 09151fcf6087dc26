; Never ends: interrupts off, a jump to itself.
bits 16
section .start exec
    cli
    jmp $
