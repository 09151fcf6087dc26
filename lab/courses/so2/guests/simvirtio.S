// The driver of SIMVIRTIO, in 64-bit code. It is finished, so you can test the VMM with it. Its structures are those of device.h.
    .intel_syntax noprefix
    .code64

    .set MAGIC_VALUE, 0x74726976
    .set DEVICE_RESET, 0
    .set DEVICE_CONFIG, 2
    .set DEVICE_READY, 4
    .set DRIVER_ACK, 0
    .set DRIVER_OK, 4
    .set TX_BUFFER, 0x11000
    // The fields of the window, which is at rdi.
    .set max_queue_len, 4
    .set device_status, 6
    .set driver_status, 7
    .set tx_head, 0x10
    .set tx_tail, 0x14

    mov edi, 0x100000
    cmp dword ptr [rdi], MAGIC_VALUE
    jne wrong
    movzx ebp, word ptr [rdi + max_queue_len]
    xor ecx, ecx                            // TX head

    mov al, 'R'
    call circ_bbuf_push
1:  pause
    cmp [rdi + tx_tail], ecx                // the device takes the byte,
    jne 1b
1:  pause
    cmp byte ptr [rdi + device_status], DEVICE_RESET
    jne 1b                                  // and resets itself

    mov byte ptr [rdi + driver_status], DRIVER_ACK
    mov al, 'C'
    call circ_bbuf_push
1:  pause
    cmp byte ptr [rdi + device_status], DEVICE_CONFIG
    jne 1b

    mov byte ptr [rdi + driver_status], DRIVER_OK
1:  pause
    cmp byte ptr [rdi + device_status], DEVICE_READY
    jne 1b

    mov esi, offset text
1:  lodsb
    test al, al
    jz 2f
    call circ_bbuf_push
    jmp 1b
2:  mov eax, 42
    mov [0x400], rax
wrong:
    hlt

// Puts al into the TX queue, and waits while the queue is full. ecx is TX head, and ebp the length of the queue.
circ_bbuf_push:
    lea edx, [rcx + 1]                      // the head after this byte
    cmp edx, ebp
    jb 1f
    xor edx, edx
1:  pause
    cmp [rdi + tx_tail], edx                // full: the device must take a byte first
    je 1b
    mov [TX_BUFFER + rcx], al
    mov ecx, edx
    mov [rdi + tx_head], ecx                // now the device sees the byte
    ret

text:
    .asciz "Ana are mere\n"
