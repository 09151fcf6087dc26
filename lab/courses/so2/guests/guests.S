// Puts the guests into the program, with a symbol at the start and at the end of each one.
    .section .rodata
    .global guest16, guest16_end, guest64, guest64_end, driver64, driver64_end
guest16:
    .incbin "guests/guest_16_bits.bin"
guest16_end:
guest64:
    .incbin "guests/guest_64_bits.bin"
guest64_end:
driver64:
    .incbin "guests/simvirtio.bin"
driver64_end:
    .section .note.GNU-stack, "", @progbits
